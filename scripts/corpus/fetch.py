"""Source packages, downloaded once into a cache folder with the machine's own `npm` and `apt-get`.

Place in the path: corpus builder, first step. Every file arrives whole or not at all (downloaded aside, then
renamed), so an interrupted build continues where it stopped. All sources but the emoji packages are optional.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import threading
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mmvit.errors import UserError


@dataclass(frozen=True)
class Package:
    """A source package: `kind` npm or deb, pinned `version` for npm, the licence of what is taken from it."""

    kind: str
    name: str
    licence: str
    version: str = ""
    required: bool = False

    @property
    def pattern(self) -> str:
        """Glob of the package's file name in the cache folder."""
        if self.kind == "npm":
            return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"
        return f"{self.name}_*.deb"


def _npm(name: str, version: str, licence: str, required: bool = True) -> Package:
    return Package("npm", name, licence, version, required)


PACKAGES = {
    "emojibase": _npm("emojibase-data", "17.0.0", "MIT"),
    "twemoji": _npm("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0"),
    "noto": _npm("@iconify-json/noto", "1.2.9", "Apache-2.0"),
    "noto-v1": _npm("@iconify-json/noto-v1", "1.2.5", "Apache-2.0"),
    "openmoji": _npm("@iconify-json/openmoji", "1.2.29", "CC-BY-SA-4.0"),
    "emojione": _npm("@iconify-json/emojione", "1.2.3", "CC-BY-4.0"),
    "emojione-v1": _npm("@iconify-json/emojione-v1", "1.2.3", "CC-BY-SA-4.0"),
    "fxemoji": _npm("@iconify-json/fxemoji", "1.2.2", "Apache-2.0"),
    "streamline": _npm("@iconify-json/streamline-emojis", "1.2.4", "CC-BY-4.0"),
    "fluent-flat": _npm("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT"),
    "fluent-3d": _npm("@lobehub/fluent-emoji-3d", "1.1.0", "MIT", required=False),
    "stamps": Package("deb", "tuxpaint-stamps-default", "GPL-2.0-or-later"),
    "scratch": Package("deb", "scratch", "CC-BY-SA-3.0"),
    "clipart": Package("deb", "openclipart-svg", "public domain"),
    "freepats": Package("deb", "freepats", "GPL-2.0-or-later with exception"),
    "minetest": Package("deb", "minetest-data", "CC-BY-SA-3.0"),
    "espeak": Package("deb", "espeak-ng", "GPL-3.0-or-later"),
    "espeak-lib": Package("deb", "libespeak-ng1", "GPL-3.0-or-later"),
    "espeak-data": Package("deb", "espeak-ng-data", "GPL-3.0-or-later"),
    "sonic": Package("deb", "libsonic0", "Apache-2.0"),
}


def licence_of(title: str) -> str:
    """The licence of a package named as `name@version`."""
    return {package.name: package.licence for package in PACKAGES.values()}[title.rpartition("@")[0]]


@dataclass(frozen=True)
class Fetched:
    """A package that lies in the cache: its file, and `name@version` as every sample's JSON states it."""

    package: Package
    path: Path

    @property
    def title(self) -> str:
        """`name@version`, for example `@iconify-json/twemoji@1.2.5`."""
        if self.package.kind == "npm":
            return f"{self.package.name}@{self.package.version}"
        version = urllib.parse.unquote(self.path.name.split("_")[1])
        return f"{self.package.name}@{version}"


class Fetcher:
    """Downloads packages into `cache`; `get` returns a package or says why it cannot be had."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache.absolute()  # the clients run in folders of their own
        self._update_lock = threading.Lock()
        self._updated = False

    def find(self, package: Package) -> Fetched | None:
        """The package's newest file in the cache, or None."""
        found = sorted(self.cache.glob(package.pattern))
        return Fetched(package, found[-1]) if found else None

    def get(self, package: Package) -> Fetched | str:
        """The package, downloaded when the cache lacks it, or one line that says why it cannot be had."""
        if (found := self.find(package)) is not None:
            return found
        self.cache.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".part-", dir=self.cache))
        try:
            problem = self._npm(package, aside) if package.kind == "npm" else self._apt(package, aside)
            files = sorted(aside.glob(package.pattern))
            if not files:
                return problem or f"{package.name}: the download brought no file {package.pattern}"
            os.replace(files[-1], self.cache / files[-1].name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return self.find(package) or f"{package.name}: not found in {self.cache}"

    def _npm(self, package: Package, folder: Path) -> str:
        if shutil.which("npm") is None:
            return f"{package.name}: npm is not installed (install Node.js, which brings npm)"
        spec = f"{package.name}@{package.version}"
        return _run(["npm", "pack", spec, "--loglevel", "error"], folder, spec)  # packs into its folder

    def _apt(self, package: Package, folder: Path) -> str:
        if shutil.which("apt-get") is None:
            return f"{package.name}: apt-get is not here (this source is a Debian package)"
        # apt drops to a user without rights to private folders and then says so: let it write here.
        folder.chmod(0o755)
        command = ["apt-get", "download", package.name]
        problem = _run(command, folder, package.name)
        if not problem or os.geteuid() != 0:
            return problem
        with self._update_lock:
            if not self._updated:
                _run(["apt-get", "update"], folder, "package lists")
                self._updated = True
        return _run(command, folder, package.name)

    def get_all(self, packages: Sequence[Package], workers: int = 4) -> dict[str, Fetched]:
        """The packages that could be had, by name, `workers` at a time; the missing get one line each.

        Raises:
            UserError: a required package is missing.
        """
        with ThreadPoolExecutor(workers) as threads:
            results = list(threads.map(self._announced, packages))
        for package, result in zip(packages, results, strict=True):
            if isinstance(result, str) and package.required:
                raise UserError(f"cannot build the corpus without {package.name}: {result}")
        return {r.package.name: r for r in results if isinstance(r, Fetched)}

    def _announced(self, package: Package) -> Fetched | str:
        result = self.get(package)
        if isinstance(result, str):
            print(f"missing    {result}", flush=True)
        else:
            print(f"fetched    {result.title} ({result.path.stat().st_size / 1e6:.1f} MB)", flush=True)
        return result


def _run(command: Sequence[str], folder: Path, what: str) -> str:
    """'' when the command succeeded, else one line with its last complaint."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"(E:|npm (error|ERR!))", line)] or lines or ["no message"]
    return f"{what}: {' '.join(command[:2])} failed: {told[0][:160]}"

"""A page in the browser that finds what you name in a picture; `mmvit-demo detect` is the same.

python scripts/demo_detect.py --model runs/quickstart/detector/model
python scripts/demo_detect.py --model M --image in.jpg --queries "fox, cup" --out found.png
"""

from mmvit.cli.demo.detect import main

if __name__ == "__main__":
    main()

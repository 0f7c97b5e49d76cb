"""mmvit-demo: pages in the browser, and their command-line forms."""

"""What only CI and authors of kernels run. README.md says what each part is and how to run it."""

# transformers reads the version of any package of this name that it can import; 0 is older than it accepts.
__version__ = "0"

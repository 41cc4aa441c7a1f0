"""What is read and written: configs, checkpoints, downloads, and how a file is replaced. Below `mm` and `engine`."""

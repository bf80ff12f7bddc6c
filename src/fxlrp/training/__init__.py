"""What `fxlrp train` does: folders of images and masks in, a model that looks at the foreground out."""

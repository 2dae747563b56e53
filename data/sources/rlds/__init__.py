"""RLDS data sets: TFRecord files of TensorFlow Datasets."""

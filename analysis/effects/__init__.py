"""What the runs made say. A `Table` comes in; slopes, stage effects and a verdict on warmdown go out."""

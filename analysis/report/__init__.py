"""What a person reads. A `Study` comes in; report.html, figures, tables go out by `report.make_report`."""

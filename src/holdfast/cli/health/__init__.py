"""What `holdfast doctor` looks at: one file per subject, each answering with findings."""

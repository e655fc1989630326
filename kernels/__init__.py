"""One operation per file, as plain torch: the specification of what a faster version must compute."""

"""What runs next: policies, admission, batches, retraction."""

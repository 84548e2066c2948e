"""What each way of spreading a run sends, one file each."""

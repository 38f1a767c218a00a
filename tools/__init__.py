"""What makes and checks files of the repository."""

"""Documentation, and the scripts that make its generated parts."""

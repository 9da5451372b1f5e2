"""What is wrong with a caption, by rules, and what is cut off from one."""

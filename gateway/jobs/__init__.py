"""Jobs once they are accepted: the one service under every route, their progress, and sending them again."""

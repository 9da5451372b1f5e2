"""Captioning folders of pictures through a gateway."""

"""The small files of an artifact: what tokenising, rendering prompts and preparing pictures needs."""

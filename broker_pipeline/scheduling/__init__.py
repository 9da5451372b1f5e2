"""Every decision about what runs where and when. Pure: no I/O, no clock."""

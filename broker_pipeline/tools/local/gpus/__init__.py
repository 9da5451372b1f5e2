"""The GPUs of one machine: which worker gets which, and how several share one."""

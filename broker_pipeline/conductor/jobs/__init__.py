"""Jobs in a conductor's hands: pulled, run attempt by attempt, ended, cancelled."""

"""The set checker: jobs with known answers, faults at random times, and proof that nothing was lost."""

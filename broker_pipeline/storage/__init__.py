"""What JetStream keeps: the queue of jobs, and the media that they refer to."""

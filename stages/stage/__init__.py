"""The stage worker: envelopes in, envelopes or results out."""

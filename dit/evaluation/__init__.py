"""Scores of samples against a reference, with the protocol that makes them comparable."""

"""Weights in formats of other programs, one file a format.

A reader gives a network's description (NetworkSpec) and its state dict with the names of this
package. `dit convert` writes them as a weights file of ours.
"""

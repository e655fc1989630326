"""Encoders of pictures, and the frame of the models that read what they give."""

"""The types that cross rooms: what one part of dslc hands to another, frozen and printable.

Nothing here imports another room, and importing it loads only the standard library.
"""

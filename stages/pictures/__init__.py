"""From the bytes of pictures and videos to what a person sees: upright, 8 bits, sRGB, on a background."""

"""The privacy core: hidden regions, their masks, and the pixels that replace a face."""

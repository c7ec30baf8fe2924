"""Pictures and masks: the only code that decodes, encodes, resizes or composes images."""

from latentseg.images.drawing import class_colors, contact_sheet, cut_out, overlay
from latentseg.images.encoding import encode, write_image, write_mask
from latentseg.images.folders import (
    PictureFolder,
    is_picture,
    list_images,
    list_pictures,
    name_of,
)
from latentseg.images.kinds import IGNORE, MAX_PIXELS, OTHER_SUFFIXES, SUFFIXES, Pixels
from latentseg.images.reading import (
    PLAIN,
    Reading,
    StoredColors,
    decode_image,
    decode_mask,
    is_plain,
    pages_of,
    read_colors,
    read_halves,
    read_image,
    read_mask,
    size_of,
    to_image,
)
from latentseg.images.scaling import cover, resize, resize_mask, to_pixels, to_tensor
from latentseg.images.value_range import with_range

__all__ = [
    "IGNORE",
    "MAX_PIXELS",
    "OTHER_SUFFIXES",
    "PLAIN",
    "SUFFIXES",
    "PictureFolder",
    "Pixels",
    "Reading",
    "StoredColors",
    "class_colors",
    "contact_sheet",
    "cover",
    "cut_out",
    "decode_image",
    "decode_mask",
    "encode",
    "is_picture",
    "is_plain",
    "list_images",
    "list_pictures",
    "name_of",
    "overlay",
    "pages_of",
    "read_colors",
    "read_halves",
    "read_image",
    "read_mask",
    "resize",
    "resize_mask",
    "size_of",
    "to_image",
    "to_pixels",
    "to_tensor",
    "with_range",
    "write_image",
    "write_mask",
]

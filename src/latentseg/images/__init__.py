"""Pictures and masks: the only code that decodes, encodes, resizes or composes images."""

from latentseg.images.drawing import class_colors, contact_sheet, cut_out, overlay
from latentseg.images.encoding import encode, write_image, write_mask
from latentseg.images.folders import (
    PictureFolder,
    is_picture,
    is_stack,
    list_images,
    list_pictures,
    name_of,
    page_name,
)
from latentseg.images.headers import is_plain, pages_of, size_of
from latentseg.images.kinds import IGNORE, MAX_PIXELS, OTHER_SUFFIXES, SUFFIXES, Pixels
from latentseg.images.masks import (
    StoredColors,
    decode_mask,
    read_colors,
    read_cutout,
    read_halves,
    read_mask,
)
from latentseg.images.reading import PLAIN, Reading, decode_image, read_image, to_image
from latentseg.images.scaling import cover, resize, resize_mask, to_pixels, to_tensor
from latentseg.images.series import Picture, Series, open_series
from latentseg.images.shared_range import with_range

__all__ = [
    "IGNORE",
    "MAX_PIXELS",
    "OTHER_SUFFIXES",
    "PLAIN",
    "SUFFIXES",
    "Picture",
    "PictureFolder",
    "Pixels",
    "Reading",
    "Series",
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
    "is_stack",
    "list_images",
    "list_pictures",
    "name_of",
    "open_series",
    "overlay",
    "page_name",
    "pages_of",
    "read_colors",
    "read_cutout",
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

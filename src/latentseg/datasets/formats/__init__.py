"""Formats of other tools, read and written: COCO, YOLO-seg, PASCAL VOC and CVAT, Hugging Face."""

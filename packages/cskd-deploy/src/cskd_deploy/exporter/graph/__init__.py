"""Exportable graphs: stock mmdet students with decoding and top-k, one file a family."""

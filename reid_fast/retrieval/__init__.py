"""From images to ranked lists: a trained encoder in use."""

from reid_fast.retrieval.features_file import check_features_file, write_features
from reid_fast.retrieval.gallery_index import load_index, save_index
from reid_fast.retrieval.loaded import Embedded, LoadedEncoder, configured_encoder, load_encoder
from reid_fast.retrieval.ranked_page import ranked_page
from reid_fast.retrieval.ranked_picture import ranked_picture
from reid_fast.retrieval.ranking import RankedLists, own_files, rank, rank_again, same_camera, search
from reid_fast.retrieval.shown_lists import ShownLists

__all__ = [
    "Embedded",
    "LoadedEncoder",
    "RankedLists",
    "ShownLists",
    "check_features_file",
    "configured_encoder",
    "load_encoder",
    "load_index",
    "own_files",
    "rank",
    "rank_again",
    "ranked_page",
    "ranked_picture",
    "same_camera",
    "save_index",
    "search",
    "write_features",
]

"""Read the repository that our writing side made with the client of python-tuf 7.0.0: read.py FOLDER PATH CONTENT ...

A content that begins with @ names a file that holds it."""

import pathlib
import sys
import tempfile
from urllib.parse import unquote

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

folder = pathlib.Path(sys.argv[1])


class Folder(FetcherInterface):
    def _fetch(self, url):
        place = folder / unquote(url.removeprefix("test:/"))
        if not place.is_file():
            raise DownloadHTTPError(f"no {place}", 404)
        yield place.read_bytes()


with tempfile.TemporaryDirectory() as state:
    first_root = (folder / "metadata/1.root.json").read_bytes()
    updater = Updater(state, "test:/metadata/", state, "test:/targets/", fetcher=Folder(), bootstrap=first_root)
    updater.refresh()
    for path, content in zip(sys.argv[2::2], sys.argv[3::2]):
        info = updater.get_targetinfo(path)
        assert info, f"python-tuf does not find {path}"
        got = pathlib.Path(updater.download_target(info)).read_bytes()
        expected = pathlib.Path(content[1:]).read_bytes() if content.startswith("@") else content.encode()
        assert got == expected, f"{path}: {got[:100]}"
        print(f"python-tuf read {path} of {len(got)} bytes")
    assert updater.get_targetinfo("releases/none.tar") is None

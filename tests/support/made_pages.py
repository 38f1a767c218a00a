"""What the build of the site makes in docs/: no page of these is one that a person wrote.

It imports nothing of Sphinx.  .gitignore and MANIFEST.in name the same; tests/repo/test_docs.py compares them.
"""

import sys

from places import ROOT

#: folders of docs/ that hold nothing else
FOLDERS = ("_build", "gallery", "reference/optimizers")


def copies():
    """The pages, seen from docs/, that are copies of other files.  None where there is no docs/."""
    if not (ROOT / "docs" / "_ext").is_dir():
        return set()
    for folder in (ROOT, ROOT / "docs" / "_ext"):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))        # last: optimc may be an installed one
    import site_pages
    return set(site_pages.COPIES.values())


def written_pages(root, ending="md"):
    """The pages in root/docs/ that people wrote."""
    made, docs = copies(), root / "docs"

    def is_made(page):
        return page in made or page.startswith(tuple(f"{folder}/" for folder in FOLDERS))

    return [page for page in sorted(docs.glob(f"**/*.{ending}")) if not is_made(page.relative_to(docs).as_posix())]


def patterns():
    """All that is made, as .gitignore and MANIFEST.in name it."""
    pages = {page if page.endswith(".md") else f"{page.rpartition('/')[0]}/*.ipynb" for page in copies()}
    return {f"docs/{name}" for name in (*FOLDERS, *pages)}

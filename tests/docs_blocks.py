"""Compiles the C and C++ of the documents.

A fenced block that is marked `c` or `cpp` is a file of its own, before which the headers of the prelude below are
included. One that is marked `c statements` or `cpp statements` is put into a function that has the parameters below.
Words that begin with a hyphen, as in `cpp -fno-exceptions`, are options of the compiler. Warnings are errors, but those
about what an excerpt leaves unused. Other languages are not checked.

    python3 tests/docs_blocks.py --include <directory of trion.h>
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "docs/embedding.md", "docs/bare-metal.md"]
OPTIONS = ["-Wall", "-Wextra", "-Wpedantic", "-Wno-unused-function", "-Wno-unused-variable",
           "-Wno-unused-but-set-variable", "-Wno-unused-parameter", "-Werror", "-fsyntax-only"]

C_PRELUDE = """#define _POSIX_C_SOURCE 200809L
#include <trion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
"""
C_STATEMENTS = """
void statements(trion_model *model, trion_session *session, trion_text *text, trion_error error, trion_event event);
void statements(trion_model *model, trion_session *session, trion_text *text, trion_error error, trion_event event)
{
%s
}
"""
CPP_PRELUDE = """#include <trion.hpp>
#include <cstdio>
#include <iostream>
"""
CPP_STATEMENTS = """
void statements(trion::model model, trion::session session);
void statements(trion::model model, trion::session session)
{
%s
}
"""


def blocks(text):
    """The fenced blocks of a document: line number, language, content."""
    found, language, first, lines = [], None, 0, []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            if language is None:
                language, first, lines = line[3:].strip(), number, []
            else:
                found.append((first, language, "\n".join(lines)))
                language = None
        elif language is not None:
            lines.append(line)
    if language is not None:
        sys.exit("a fenced block has no end")
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cc", default="cc")
    parser.add_argument("--cxx", default="c++")
    parser.add_argument("--include", required=True)
    arguments = parser.parse_args()
    c, cpp = [arguments.cc, "-std=c99"], [arguments.cxx, "-std=c++17"]
    languages = {
        "c": (c, ".c", C_PRELUDE + "%s\n"),
        "c statements": (c, ".c", C_PRELUDE + C_STATEMENTS),
        "cpp": (cpp, ".cpp", CPP_PRELUDE + "%s\n"),
        "cpp statements": (cpp, ".cpp", CPP_PRELUDE + CPP_STATEMENTS),
    }
    compiled = failed = 0
    with tempfile.TemporaryDirectory() as directory:
        for document in DOCUMENTS:
            for line, language, block in blocks((ROOT / document).read_text(encoding="utf-8")):
                words = language.split()
                language = " ".join(word for word in words if not word.startswith("-"))
                if language not in languages:
                    continue
                command, suffix, around = languages[language]
                options = OPTIONS + [word for word in words if word.startswith("-")]
                path = pathlib.Path(directory) / f"block{compiled}{suffix}"
                path.write_text(around % f'#line {line + 1} "{document}"\n{block}', encoding="utf-8")
                done = subprocess.run([*command, *options, "-I", arguments.include, str(path)])
                compiled += 1
                if done.returncode != 0:
                    failed += 1
                    print(f"{document}:{line}: this block does not compile", file=sys.stderr)
    print(f"{compiled} blocks, {failed} of them do not compile")
    # Without any block there is a mistake in this script, or in the fences.
    sys.exit(1 if failed or compiled < 10 else 0)


main()

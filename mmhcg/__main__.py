"""`mmhcg NAME ...`: the tools from anywhere, where there is no checkout to type `python tools/NAME.py` in."""

from __future__ import annotations

import runpy
import sys
from difflib import get_close_matches

from mmhcg.installation import places_of


def main(argv: list[str] | None = None) -> None:
    """Run `doctor`, or a tool by its name, with the arguments after it."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ['--help']
    if name == 'doctor':
        from mmhcg import doctor

        return doctor.main(rest)
    folder = next(place for place in places_of('tools') if place.is_dir())
    tools = {path.stem: path for path in sorted(folder.glob('*.py'))}
    tool = tools.get(name.replace('-', '_'))
    if tool is None:
        usage = f'usage: mmhcg {{doctor,{",".join(tools)}}} ...\n\nmmhcg NAME --help tells more of each.'
        if name in ('-h', '--help'):
            print(usage)
            sys.exit(0)
        near = get_close_matches(name.replace('-', '_'), ['doctor', *tools], 1)
        meant = f': did you mean {near[0]}?' if near else ''
        print(f'{usage}\nerror: no tool {name}{meant}', file=sys.stderr)
        sys.exit(2)
    sys.argv[1:] = rest
    runpy.run_path(str(tool), run_name='__main__')


if __name__ == '__main__':
    main()

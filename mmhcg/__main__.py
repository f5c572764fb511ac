"""`mmhcg NAME ...`: the tools from anywhere, where there is no checkout to type `python tools/NAME.py` in."""

from __future__ import annotations

import runpy
import sys

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
        print(f'usage: mmhcg {{doctor,{",".join(tools)}}} ...\n\nmmhcg NAME --help tells more of each.')
        sys.exit(0 if name in ('-h', '--help') else f'error: no tool {name}')
    sys.argv[1:] = rest
    runpy.run_path(str(tool), run_name='__main__')


if __name__ == '__main__':
    main()

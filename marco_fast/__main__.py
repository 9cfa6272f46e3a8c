"""python -m marco_fast"""

import sys

from marco_fast.cli import main

sys.exit(main())

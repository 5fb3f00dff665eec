from .judging.judge import judge as judge
from .judging.judge import repeat as repeat
from .judging.report import Report as Report
from .judging.verdict import Verdict as Verdict

"""What a detector costs, part by part."""

from mmhcg.analysis.complexity import Part, count_complexity, format_table

__all__ = ['Part', 'count_complexity', 'format_table']

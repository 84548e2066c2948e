"""Reports: stored runs, plans and dry runs as frames, figures and one page.

``frames`` turns documents into pandas frames, ``figures`` frames into plotly figures, ``html`` and
``markdown`` put them on a page. A notebook can call each of them alone.
"""

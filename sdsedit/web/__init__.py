"""The web page: `python app.py`.

settings   every limit and every security setting, in one place
guard      what a request must pass before Gradio sees it, and which proxies are believed
worker     one thread that owns the model, and a fair queue in front of it
sessions   what the server remembers of a person, and for how long
image_work what the Image tab does, as plain functions
mcp_tools  the same for language models, if they are asked for
image_tab  its widgets and their wiring
metrics    counts for Prometheus
logs       what is logged, as text or JSON, and what never is
serve      the application: page, health, start and end
"""

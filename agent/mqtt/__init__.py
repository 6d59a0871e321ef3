"""MQTT: jobs that are published to a broker, sensor pipelines that ask by themselves, and Home Assistant's discovery.

How a job is run is `agent.jobs`; what a fleet wants of pipelines stands in its document, written by `agent.manifests`.
"""

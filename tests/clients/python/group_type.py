"""Prints the type of a consumer group, CLASSIC or CONSUMER: group_type.py BOOTSTRAP GROUP."""

import sys

from confluent_kafka.admin import AdminClient

bootstrap, group = sys.argv[1:]
client = AdminClient({"bootstrap.servers": bootstrap})
listed = client.list_consumer_groups(request_timeout=30).result()
types = {found.group_id: found.type.name for found in listed.valid}
print(types.get(group) or f"{group} is not among {types}; errors: {listed.errors}")

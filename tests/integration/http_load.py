"""A load generator for services, run on a node by `python3 - URL TOKEN SECONDS CLIENTS`: standard library only.

Each client asks again and again, half of them on kept-open connections, and counts what is not 200, until the file
OVER is there, or for SECONDS at most. Prints one JSON object: requests, failures, the first failures in words, and the
answers seen with how often.
"""

import collections
import http.client
import json
import os
import sys
import threading
import time
import urllib.parse

OVER = "/tmp/load-is-over"


def client(url, token, until, keep, found):
    place = urllib.parse.urlsplit(url)
    connection = None
    while time.monotonic() < until and not os.path.exists(OVER):
        try:
            if connection is None:
                connection = http.client.HTTPConnection(place.hostname, place.port, timeout=20)
            connection.request("GET", place.path, headers={"Authorization": "Bearer " + token})
            answer = connection.getresponse()
            body = answer.read()
            word = body.decode().strip() if answer.status == 200 else f"status {answer.status}"
            failed = answer.status != 200
        except (OSError, http.client.HTTPException) as error:
            word, failed, connection = f"{type(error).__name__}: {error}", True, None
        found.append((failed, word))
        if not keep and connection is not None:
            connection.close()
            connection = None
        time.sleep(0.01)


def main(url, token, seconds, clients):
    found = []
    until = time.monotonic() + float(seconds)
    threads = [
        threading.Thread(target=client, args=(url, token, until, number % 2 == 0, found))
        for number in range(int(clients))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failures = [word for failed, word in found if failed]
    words = collections.Counter(word for failed, word in found if not failed)
    print(json.dumps({"requests": len(found), "failures": len(failures), "first": failures[:5], "answers": words}))


main(*sys.argv[1:])

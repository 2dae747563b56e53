"""`python -I -S preloaded_python.py SOCKET SCRIPT ARGUMENTS`: run a script in a forked process.

Takes the place of an interpreter: the server at SOCKET (`tests.support.ray_workers`) forks the process, which
gets this one's arguments, environment, folder and open files. This one waits for its end.
"""

import array
import json
import os
import socket
import sys

if __name__ == "__main__":
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(sys.argv[1])
        request = json.dumps([sys.argv[2:], dict(os.environ), os.getcwd()]).encode()
        files = array.array("i", [0, 1, 2])
        connection.sendmsg(
            [len(request).to_bytes(4, "little")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)]
        )
        connection.sendall(request)
        connection.recv(1)

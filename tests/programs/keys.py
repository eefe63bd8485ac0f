"""Types into a program that wants a terminal: keys.py WAIT-FOR KEYS COMMAND...

Starts COMMAND on a terminal of 80 x 24, waits until it has shown WAIT-FOR and shows nothing more, types KEYS (with Python
escapes), reads to the end, and ends as COMMAND ended.
"""
import fcntl, os, pty, select, struct, sys, termios

# A program that still draws may throw away what is typed; so does one whose terminal changes its size.
QUIET = 0.3

wait_for, keys, command = sys.argv[1].encode(), sys.argv[2], sys.argv[3:]
pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    os.execvp(command[0], command)
shown, typed = b"", False
while True:
    if not typed and wait_for in shown and not select.select([terminal], [], [], QUIET)[0]:
        os.write(terminal, keys.encode().decode("unicode_escape").encode())
        typed = True
    try:
        read = os.read(terminal, 65536)
    except OSError:
        # The last process on the terminal is gone.
        break
    if not read:
        break
    shown += read
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
if status or not typed:
    sys.exit(f"{command} ended with {status}, typed: {typed}, shown: {shown!r}")

//! The command's side of the control socket.

beginTable();
beginViewer();

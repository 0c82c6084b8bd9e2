beginTable();
drawCurves();
beginViewer();
